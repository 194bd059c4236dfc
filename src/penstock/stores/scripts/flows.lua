-- Flows that share limits, as in penstock/_core/flows.py.

-- Of the flow of the requests that follow: its entries, how far it may run ahead, and what it has had, in seconds of
-- throughput.
local mine, room, back, inverse, spent, ahead = nil, huge, 0, 1, 0, -huge

local function enter(known, key, of, before, next)  -- before: where it begins among those that have bookings
  local entry, least, its_ahead = nil, huge, 0
  for i = 1, #known do
    local one = known[i]
    if one[OF] == of then
      if one[KEY] == key then
        entry = one
      elseif one[AHEAD] > -GRACE then
        local tag = one[TAG] + max(0, -one[AHEAD])
        if tag < least then least, its_ahead = tag, one[AHEAD] end
      end
    end
  end
  local turn = (next or before == huge) and min(least, before) or before
  if not entry then
    entry = {key, of, turn < huge and turn or 0, NEVER}
    known[#known + 1] = entry
  elseif entry[AHEAD] > NEVER and entry[AHEAD] < 0 and turn < huge then
    entry[TAG] = max(entry[TAG], min(entry[TAG] - entry[AHEAD], turn))
  end
  local its_room = least + LEAD - entry[TAG]
  if its_room < room then room, back = its_room, its_ahead end
  return entry
end

local function close_turn()
  if mine and ahead > -huge then
    for i = 1, #mine do mine[i][TAG], mine[i][AHEAD] = mine[i][TAG] + spent, max(mine[i][AHEAD], ahead) end
  end
end

local function kept(entries)
  local known = {}
  for i = 1, #entries do
    if entries[i][AHEAD] > -FORGET then known[#known + 1] = entries[i] end
  end
  if #known > FLOWS then  -- those that wait, flows before members, and had least
    table.sort(known, function(one, other)
      local away, gone = one[AHEAD] <= -GRACE, other[AHEAD] <= -GRACE
      if away ~= gone then return gone end
      if (one[OF] == 0) ~= (other[OF] == 0) then return one[OF] == 0 end
      return one[TAG] < other[TAG]
    end)
  end
  return known
end
