-- Run the operations in their order, write the rows, and reply, as in penstock/_core/batch.py.
--
-- The operations stand in one loop, and are no functions: a server makes each function of a script anew in each call,
-- and those of a dozen operations would cost a third of what most calls take.

local stop = #asked
while position <= stop do
  local operation = asked[position]
  if operation == SERIES then
    local horizon, stops, width = asked[position + 1], asked[position + 2], asked[position + 3]
    local from = position + 5 + width
    local after = from + (1 + width) * asked[position + 4]
    local of, seconds, fits, part = {}, {}, not any_stopped, 0
    for i = 1, width do
      of[i] = asked[position + 4 + i] + 1
      seconds[i] = seconds_of(of[i])
      for j = 1, i - 1 do fits = fits and of[j] ~= of[i] end
    end
    while from < after do  -- as most: all can
      local times = asked[from]
      part = fits and times or 0
      for i = 1, width do
        local amount, taken, free = asked[from + i], used[of[i]], free_until[of[i]]
        if taken + part * amount > free then
          part = free > taken and min(part, floor((free - taken) / amount)) or 0
          while part > 0 and taken + part * amount > free do part = part - 1 end
        end
      end
      said = said + 1
      verdicts[said] = part
      if part > 0 then
        booking_number, booking_due, booking_within = 0, NEW, -1
        local share = 0
        for i = 1, width do
          local limit, amount = of[i], asked[from + i]
          local taken = part * amount
          verdicts[said + i] = what[limit] + amount
          used[limit], what[limit] = used[limit] + taken, what[limit] + taken
          if taken * seconds[i] > share then share = taken * seconds[i] end
        end
        said = said + width
        if mine then spent, ahead = spent + share * inverse, max(ahead, 0) end
      end
      if part < times then break end
      from = from + 1 + width
    end
    position = after
    if from < after then  -- the others one by one
      local left = {}
      for run = from, after - 1, 1 + width do
        for _ = run == from and part + 1 or 1, asked[run] do
          local at = #left
          left[at + 1], left[at + 2], left[at + 3], left[at + 4] = ACQUIRE, horizon, stops, width
          for i = 1, width do left[at + 3 + 2 * i], left[at + 4 + 2 * i] = of[i] - 1, asked[run + i] end
        end
      end
      for i = after, stop do left[#left + 1] = asked[i] end
      asked, position, stop = left, 1, #left
    end
  elseif operation == ACQUIRE then
    local horizon, stops, charges = asked[position + 1], asked[position + 2], asked[position + 3]
    local from = position + 4
    position = from + 2 * charges
    local longest, blocker, fixed = 0, -1, false
    local id, due, within = booking_number, booking_due, booking_within
    booking_number, booking_due, booking_within = 0, NEW, -1
    local in_line = false
    if due ~= NEW then
      for i = from, position - 1, 2 do in_line = in_line or is_in_line(row_of[asked[i] + 1], id) end
    end
    local early = horizon < due and due <= within and not in_line
    for i = from, position - 1, 2 do
      local limit = asked[i] + 1
      local wait = wait_of(limit, asked[i + 1])
      -- What comes back all at once cannot be had in advance.
      if wait > 0 and kind[limit] ~= BUCKET then fixed = true end
      if pause[limit] > wait then wait, fixed = pause[limit], true end
      if stopped[limit] and not (early and stopped[limit] == "kept") then fixed = true end
      if wait > longest or (fixed and blocker < 0) then longest, blocker = wait, limit - 1 end
    end
    if not fixed and longest > 0 then
      for i = from, position - 1, 2 do
        local limit = asked[i] + 1
        if kind[limit] == CALENDAR and now + longest * 1e6 >= what[limit] then
          fixed, blocker, longest = true, limit - 1, max(longest, (what[limit] - now) / 1e6)
        end
      end
    end
    local rows, standing, crowded, claims, passes, asker, plain = {}, {}, false, false, true, nil, nil
    local positions = {}
    for i = from, position - 1, 2 do
      local name = row_of[asked[i] + 1]
      local known = false
      for j = 1, #rows do known = known or rows[j] == name end
      if not known then rows[#rows + 1] = name end
      crowded = crowded or #booked[name] > 0
    end
    if id ~= 0 or crowded then
      asker, plain = asker_of(share_of(from, position - 1))
      crowded = false
      for j = 1, #rows do
        local name = rows[j]
        local booking
        local _, at = nil, nil
        if id ~= 0 then _, at = of_number(booked[name], id) end
        positions[j] = at or #booked[name] + 1
        if early then
          booking = of_number(booked[name], id)
          standing[#standing + 1] = booking
        elseif due ~= NEW then
          booking = take_booking(booked[name], id, due, amounts_of(from, position - 1, name))
          claims = claims or booking ~= nil
        end
        if booking then
          if booking[ID] ~= 0 and name == payer then asker[5], asker[6] = booking[START], booking[MEMBER_START] end
        end
        crowded = crowded or #booked[name] > 0
      end
      for i = from, position - 1, 2 do  -- until there are places for all that come before it, too
        local limit = asked[i] + 1
        local name = row_of[limit]
        if #booked[name] > 0 and is_places(limit) then
          local at
          for j = 1, #rows do at = rows[j] == name and positions[j] or at end
          local of, column = name == payer and asker or plain, AMOUNTS + limit - begins[name]
          local before_it = ahead_of_place(booked[name], of, at, column)
          local seconds = before_it ~= 0 and wait_of(limit, asked[i + 1] + before_it) or 0
          fixed = fixed or seconds > 0
          if seconds > longest then longest, blocker = seconds, limit - 1 end
        end
      end
    end
    if asker and crowded and not fixed then
      local found, all = {}, {}
      for j = 1, #rows do
        local of = rows[j] == payer and asker or plain
        found[rows[j]], all[rows[j]] = before(booked[rows[j]], of, id, claims and not in_line), before(booked[rows[j]], of, id, false)
      end
      passes = longest <= horizon
      for i = from, position - 1, 2 do
        local limit = asked[i] + 1
        local column = AMOUNTS + limit - begins[row_of[limit]]
        if passes and kind[limit] == BUCKET then
          passes = not delays(found[row_of[limit]], column, limit, need_of(limit, asked[i + 1]), longest)
        end
      end
      if not passes then  -- where it was passed it goes to the end, so the next ones keep their moments
        local after_all, last_ready = 1e-6, asked[from]
        for i = from, position - 1, 2 do
          local limit = asked[i] + 1
          if kind[limit] == BUCKET then
            local column, sum = AMOUNTS + limit - begins[row_of[limit]], 0
            for _, booking in ipairs(all[row_of[limit]]) do sum = sum + booking[column] end
            local over = (used[limit] + sum + need_of(limit, asked[i + 1]) - second[limit]) / first[limit]
            if over > after_all then after_all, last_ready = over, limit - 1 end
          end
        end
        if after_all > longest then longest, blocker = after_all, last_ready end
      end
    end
    local goes = passes and longest <= horizon and not fixed
    if early and goes then
      for j = 1, #rows do
        claims = take_booking(booked[rows[j]], id, due, amounts_of(from, position - 1, rows[j])) and true or claims
      end
    end
    local books = not goes and asker and longest <= within and not fixed
    local may_stand_back = not (fixed or crowded or claims or (id ~= 0 and not goes))
    local stands = asker and not (goes or early) and id ~= 0 and fixed
      and is_places(blocker + 1) and stopped[blocker + 1] ~= true
      and not lined[asker[4] .. ' ' .. priority]
    for i = from, position - 1, 2 do stands = stands and pause[asked[i] + 1] <= 0 end
    for j = 1, #rows do stands = stands and #booked[rows[j]] < MOST end
    if stands then  -- it waits for places: where its booking was, or at the end
      local told = min(IN_LINE_FOR, within)
      say(-1 - told)
      say(IN_LINE)
      lined[asker[4] .. ' ' .. priority] = true  -- a later one of that flow gets no booking beside it
      for j = 1, #rows do
        local name = rows[j]
        local of, amounts, sum = name == payer and asker or plain, amounts_of(from, position - 1, name, true), 0
        for i = 1, #amounts do sum = sum + amounts[i] end
        if sum ~= 0 then
          local booking = {id, told, priority, waited, ageing, of[4], of[5], of[6], of[7], unpack(amounts)}
          table.insert(booked[name], positions[j], booking)
          for limit = begins[name] + 1, begins[name + 1] do free_until[limit] = -1 end
        end
      end
      if mine then
        if not claims then spent = spent + share_of(from, position - 1) * inverse end
        ahead = max(ahead, told)
      end
    elseif early and not goes then  -- it keeps its booking, and a later one gets none beside it
      if standing[1] then
        due = standing[1][DUE]
        for j = 2, #standing do due = min(due, standing[j][DUE]) end
      end
      if not fixed then due = min(due, longest) end
      for j = 1, #standing do
        local booking = standing[j]
        booking[DUE], booking[PRIORITY], booking[WAITED] = due, priority, waited
      end
      say(-1 - due)
      say(BOOKED)
      for i = from, position - 1, 2 do
        stopped[asked[i] + 1], any_stopped = stopped[asked[i] + 1] or "kept", true
      end
      if mine then ahead = max(ahead, due) end
    elseif longest > 0 and spent > room and stops ~= 0 and may_stand_back then  -- another flow's turn
      local again = min(max(spent - room, back, AGAIN_LEAST), AGAIN_MOST)
      ahead = max(ahead, again + LATE)
      say(-1 - again)
      say(-1 - (spent - room))
    elseif goes or books then
      if goes then
        say(longest)
        for i = from, position - 1, 2 do say(charge(asked[i] + 1, asked[i + 1], longest)) end
      else
        say(-1 - longest)
        say(BOOKED)
        if claims and mine then  -- it takes the next turn like all, and not one more
          if mine[2] then asker[6] = mine[2][TAG] + spent else asker[5], asker[6] = mine[1][TAG] + spent, ALONE end
          mine[#mine][TAG] = mine[#mine][TAG] + asker[7]
        end
        for j = 1, #rows do
          local name = rows[j]
          local of = name == payer and asker or plain
          local amounts = amounts_of(from, position - 1, name)
          local booking = {id, longest, priority, waited, ageing, of[4], of[5], of[6], of[7], unpack(amounts)}
          add_booking(booked[name], booking)
          for limit = begins[name] + 1, begins[name + 1] do free_until[limit] = -1 end
        end
        if claims then  -- a later request gets no booking of its own beside it
          for i = from, position - 1, 2 do stopped[asked[i] + 1], any_stopped = true, true end
        end
      end
      if mine then
        if not claims then spent = spent + share_of(from, position - 1) * inverse end
        ahead = max(ahead, longest)
      end
    else
      say(-1 - longest)
      say(blocker)
      if stops ~= 0 then
        for i = from, position - 1, 2 do
          local limit = asked[i] + 1
          if not passes or wait_of(limit, asked[i + 1]) > 0 or pause[limit] > 0 then
            stopped[limit], any_stopped = true, true
          end
        end
      end
    end
  elseif operation == GIVE_BACK then
    local from = position + 2
    position = from + 4 * asked[position + 1]
    for i = from, position - 1, 4 do
      local limit, amount, receipt = asked[i] + 1, asked[i + 1], asked[i + 3]
      if asked[i + 2] == epochs[limit] then
        if kind[limit] == BUCKET then
          local least = min(used[limit], last[limit] * first[limit] + charged_since(limit, receipt))
          used[limit] = max(used[limit] - amount, least)
          remember(entries[limit], receipt, amount)
        elseif kind[limit] == CALENDAR then
          if receipt == what[limit] then used[limit] = max(0, used[limit] - amount) end
        elseif receipt >= used[limit] + ceil(second[limit] * 1e6) and (third[limit] == RENEWED or receipt > now) then
          -- Else it was charged before this kind of limit took over, or has come back by itself.
          entries[limit] = release(entries[limit], amount, receipt, third[limit])
        end
      end
    end
  elseif operation == CHARGE then
    local from = position + 2
    position = from + 2 * asked[position + 1]
    for i = from, position - 1, 2 do say(charge(asked[i] + 1, asked[i + 1], 0)) end
  elseif operation == PAUSE then
    local seconds, from = asked[position + 1], position + 3
    position = from + asked[position + 2]
    for i = from, position - 1 do
      local limit = asked[i] + 1
      pause[limit] = max(pause[limit], seconds)
      if seconds > 0 then free_until[limit] = -1 end
    end
  elseif operation == RESUME then
    local from = position + 2
    position = from + asked[position + 1]
    for i = from, position - 1 do pause[asked[i] + 1] = 0 end
  elseif operation == LOWER then
    local from = position + 2
    position = from + 5 * asked[position + 1]
    for i = from, position - 1, 5 do
      local limit, level, age, epoch, receipt = asked[i] + 1, asked[i + 1], asked[i + 2], asked[i + 3], asked[i + 4]
      local a, b = first[limit], second[limit]
      if kind[limit] == BUCKET then
        if epoch == epochs[limit] then level = level + age * a - charged_since(limit, receipt) end
        local missing = b - level - used[limit]
        if missing > 0 then
          used[limit], what[limit] = used[limit] + missing, what[limit] + missing
        end
      elseif kind[limit] == CALENDAR then
        used[limit] = max(used[limit], a - level)
      elseif third[limit] == LOG then
        local missing = a - total(entries[limit]) - level
        if missing > 0 then charge(limit, missing, 0) end
      end
    end
  elseif operation == FLOW then
    close_turn()
    local key, member = asked[position + 1], asked[position + 2]
    payer = row_of[asked[position + 4] + 1]
    local known, waits = flows[payer], asked[position + 5]
    local of_flows, of_members = starts(booked[payer], key, member == 0)
    room, back, inverse, spent, ahead = huge, 0, 1 / asked[position + 3], 0, waits > 0 and waits or -huge
    mine = {enter(known, key, 0, of_flows, member ~= 0)}
    if member ~= 0 then mine[2] = enter(known, member, key, of_members, false) end
    position = position + 6
  elseif operation == LEAVE then
    local key, member, known = asked[position + 1], asked[position + 2], flows[row_of[asked[position + 4] + 1]]
    for i = 1, #known do
      local one = known[i]
      if (one[KEY] == key and one[OF] == 0) or (one[KEY] == member and one[OF] == key) then
        one[TAG], one[AHEAD] = one[TAG] - asked[position + 3], min(one[AHEAD], 0)
      end
    end
    position = position + 5
  elseif operation == RANK then
    priority, waited, ageing = asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 4
  elseif operation == BOOK then
    booking_number, booking_due, booking_within = asked[position + 1], asked[position + 2], asked[position + 3]
    position = position + 4
  elseif operation == DROP then
    local bookings = booked[row_of[asked[position + 2] + 1]]
    for i = #bookings, 1, -1 do
      if bookings[i][ID] == asked[position + 1] then table.remove(bookings, i) end
    end
    position = position + 3
  else  -- RENEW
    local from = position + 2
    position = from + asked[position + 1]
    for i = from, position - 1 do
      local limit = asked[i] + 1
      local log = entries[limit]
      for j = 1, #log do
        if log[j][2] == owner then log[j][1] = now + ceil(second[limit] * 1e6) end
      end
      table.sort(log, earlier)
    end
  end
end

close_turn()

-- Write the rows, and say how things stand.

local reply = {now}
for name = 1, names do reply[name + 1] = born_at[name] end
for i = 1, #verdicts do reply[#reply + 1] = verdicts[i] end
for limit = 1, limits do
  local log, at = entries[limit], #reply
  reply[at + 1] = pause[limit]
  if kind[limit] == WINDOW then
    local next = is_places(limit) and next_in_line(limit) or 0
    reply[at + 2], reply[at + 3] = total(log), next ~= 0 and -next or log[1] and log[1][1] or 0
  else
    local sum = 0
    if kind[limit] == BUCKET then
      local name = row_of[limit]
      for _, booking in ipairs(booked[name]) do sum = sum + booking[AMOUNTS + limit - begins[name]] end
    end
    reply[at + 2], reply[at + 3] = used[limit] + sum, what[limit]
  end
end
for name = 1, names do
  local row, keep, at = {now, born_at[name]}, 0, 0
  for limit = begins[name] + 1, begins[name + 1] do
    local log, u, w = entries[limit], used[limit], what[limit]
    if kind[limit] == BUCKET then
      keep = max(keep, u / first[limit])
    elseif kind[limit] == CALENDAR then
      keep = max(keep, ((log[1] and log[1][1] or w) - now) / 1e6)
    else
      if #log > 0 then keep = max(keep, (log[#log][1] - now) / 1e6) end
    end
    keep = max(keep, pause[limit])
    at = #row
    row[at + 1], row[at + 2], row[at + 3], row[at + 4], row[at + 5] = pause[limit], last[limit], u, w, #log
    for i = 1, #log do
      at = #row
      row[at + 1], row[at + 2], row[at + 3] = log[i][1], log[i][2], log[i][3]
    end
  end
  row[#row + 1] = #booked[name]
  for _, booking in ipairs(booked[name]) do
    keep = max(keep, booking[DUE] + EXPIRED)
    for i = 1, #booking do row[#row + 1] = booking[i] end
  end
  local known = kept(flows[name])
  for i = 1, min(#known, FLOWS) do
    at = #row
    row[at + 1], row[at + 2], row[at + 3], row[at + 4] = unpack(known[i])
  end
  write(name, row, keep)
end
return answer(reply)
